"""An MCP server with three tools and a note, on standard input and output.

tramontane run --mcp-config examples/mcp.json "What is 17 plus 25?"
"""

import math

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("Sums")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two whole numbers."""
    return str(a + b)


@server.tool()
def multiply(a: int, b: int) -> str:
    """Multiply two whole numbers."""
    return str(a * b)


@server.tool()
def root(n: float) -> str:
    """Square root of a number."""
    if n < 0:
        raise ToolError("a number below 0 has no square root")
    return str(math.sqrt(n))


@server.resource("note://rounding")
def rounding() -> str:
    """How results are rounded."""
    return "Roots are rounded to 16 digits."


if __name__ == "__main__":
    server.run()
