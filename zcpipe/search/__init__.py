"""Searches for architectures that proxies guide: random, evolution, REINFORCE and others, within budgets."""
