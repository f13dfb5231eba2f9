"""MCP client.

``plugin`` answers the runner; ``client`` owns the loop and is what other threads call; ``server``
keeps one server connected; ``tool_table`` names the tools; ``resources`` and ``content`` turn what
servers hold and answer into text; ``failures`` tells errors in a sentence.
"""
