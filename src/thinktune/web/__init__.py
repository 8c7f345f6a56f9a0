"""HTTP rules shared by both servers, the studio and the OpenAI-compatible one."""
