"""The client's half: calls, what they owe, and the transport around them."""
