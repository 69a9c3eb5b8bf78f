"""``python -m async_delta_inference.client``, the same as ``async-delta-eval``."""

import sys

from async_delta_inference.module_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()
    from async_delta_inference.client.cli import main

    sys.exit(main())
