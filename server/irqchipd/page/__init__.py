"""The live page of `irqchipd --http`: read-only, over HTTP, in a thread of its own."""
