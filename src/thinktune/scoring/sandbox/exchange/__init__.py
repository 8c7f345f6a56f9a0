"""What the two sides of a trial say to each other. Standard library only: the text of these modules reaches the two
processes (see `jail`), which have no thinktune.

The program that a model wrote and the tests that judge it run in two processes, which exchange one JSON message a line
through the scorer. The program never sees the tests, and the tests decide on values of their own process:

- `values`: values of known types cross by value, containers keep their identity and what is done to them;
- `proxies`: everything else stays where it is; the other side gets a stand-in that passes on what is asked of it;
- `crossing`: puts the two together, and keeps the containers of both sides alike;
- `permission`: what the program may ask of what is the tests';
- `peer`: asks and answers;
- `program`: defines the program and answers for it;
- `judge` and `runners`: give the tests the names they need, and run what they define.

What the program says can only be an answer to a question of the tests. Whether two values are equal is never asked
where one of them is the tests' own.
"""
