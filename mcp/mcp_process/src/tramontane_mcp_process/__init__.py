"""MCP servers as processes: ``transport`` runs one, ``guard`` ends it when its user is gone."""
