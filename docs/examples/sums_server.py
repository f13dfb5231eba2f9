"""An MCP server with two tools and a note, on standard input and output."""

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("Sums")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two whole numbers."""
    return str(a + b)


@server.tool()
def divide(a: float, b: float) -> str:
    """Divide a by b."""
    if b == 0:
        raise ToolError("nothing can be divided by 0")
    return str(a / b)


@server.resource("note://rounding")
def rounding() -> str:
    """How results are rounded."""
    return "Results are not rounded."


if __name__ == "__main__":
    server.run()
