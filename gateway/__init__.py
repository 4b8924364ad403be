"""The public side: wire protocol, session machine, WebSocket and HTTP server, Python client."""
