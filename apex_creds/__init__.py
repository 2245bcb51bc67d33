"""Short-lived, scoped credential handles for the plugins of asyncio agent runtimes."""
