"""``python -m async_delta_inference.server_adapter``, the same as ``async-delta-serve``."""

import sys

from async_delta_inference.server_adapter.cli import main

if __name__ == "__main__":
    sys.exit(main())
