"""The page at `/`: budget, plan, chat, memories, methods and events, drawn by NiceGUI.

NiceGUI's wheel carries its scripts, so nothing comes from elsewhere and no network is needed. It is
imported by `loci.server.page.site` alone, and that only where a page is wanted.
"""
