"""The asyncio SDK."""
