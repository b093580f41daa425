"""The memory as an MCP server: eight tools, bound to one person's memory when it is started.

`tools` says what they do, without the protocol; `server` speaks it, with the official SDK. The SDK
is a package called mcp too: imports here are absolute, so the two do not meet.
"""
