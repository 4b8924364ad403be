"""The page, served by the gateway as static files."""
