"""WebSocket for the MCP client: ``transport`` connects, ``plugin`` declares it."""
