"""What both servers, the studio and the OpenAI-compatible one, ask of HTTP."""
