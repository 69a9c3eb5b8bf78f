"""``python -m async_delta_inference.server_adapter``, the same as ``async-delta-serve``."""

import sys

from async_delta_inference.module_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()
    from async_delta_inference.server_adapter.cli import main

    sys.exit(main())
