"""The simulated client: evaluates a served policy in gymnasium environments."""
