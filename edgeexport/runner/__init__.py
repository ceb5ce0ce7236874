"""How a measuring job gets to where it runs: environments, the agent, the local runner."""
