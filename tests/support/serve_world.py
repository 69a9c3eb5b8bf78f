"""In place of ``async-delta-serve``, which loads lerobot: serves the policy of `worker_world` by the same flags."""

from __future__ import annotations

import os
import sys

from worker_world import make_policy

from async_delta_inference.embedding import Parent
from async_delta_inference.transport import serve
from async_delta_inference.transport.link_options import GrpcOptions, LinkOptions
from async_delta_inference.transport.registry import backend


def main() -> None:
    parent = Parent.from_environment()
    flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    schemes = flags["transport"].split(",")
    unused = ",".join(backend(scheme).listener.unused_address() for scheme in schemes)
    pairs = zip(schemes, flags.get("server_address", unused).split(","), strict=True)
    link = LinkOptions(GrpcOptions(flags.get("grpc.dialect", "native")))
    print("sees the GPUs", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    with serve(make_policy(), *(f"{scheme}://{address}" for scheme, address in pairs), link=link) as server:
        parent.ends_us_in_order()
        parent.announce(server.uris)
        while os.read(sys.stdin.fileno(), 4096):
            pass


if __name__ == "__main__":
    main()
