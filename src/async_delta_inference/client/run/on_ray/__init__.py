"""An evaluation over the nodes of a Ray cluster. Nothing outside of this package imports ray."""
