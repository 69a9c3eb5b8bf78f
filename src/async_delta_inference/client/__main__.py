"""``python -m async_delta_inference.client``, the same as ``async-delta-eval``."""

import sys

from async_delta_inference.client.cli import main

if __name__ == "__main__":
    sys.exit(main())
