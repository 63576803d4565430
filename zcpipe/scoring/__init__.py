"""Scoring: from a network to proxies and statistics in as few passes as they need."""
