"""Runs on many machines: a Ray cluster, an agent on each of its nodes, and the executor that minds the agents."""
