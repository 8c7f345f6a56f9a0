"""Models answer: batch files, one question, a server, and the engines that generate."""
