"""The protocol between program and tests. Standard library only: the text of these modules reaches the two processes
(see `jail`), which have no thinktune.

The program that a model wrote and the tests that judge it run in two processes, which exchange one JSON message a line
through the scorer. The program never sees the tests, and the tests decide on values of their own process:

- `values`: values of known types cross by value, containers keep their identity and their changes;
- `proxies`: everything else stays where it is; the other side gets a stand-in that forwards every call;
- `crossing`: puts the two together, and keeps the containers of both sides alike;
- `permission`: the program's rights on objects of the tests;
- `peer`: asks and answers;
- `program`: defines the program and answers for it;
- `judge` and `runners`: give the tests the names they need, and run them. A message of the program can only be an
answer to a question of the tests. The program is never asked whether a value equals one of the tests'.

`whole_program` is apart: a program that reads its standard input, of which only the output matters.
"""
