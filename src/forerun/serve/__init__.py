"""The server: HTTP in OpenAI's words over `engine/service.py`; knows nothing below the engine."""
