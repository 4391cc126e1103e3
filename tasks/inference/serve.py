"""Serve completions and chat as OpenAI's API does: ``torchrun … -m ascend_patch.run tasks/inference/serve.py FLAGS``.

On loopback unless ``--host`` says otherwise; there is no authentication. SIGINT or SIGTERM end it: requests that are
under way are completed, no new ones are taken.
"""

import argparse
import signal
import socket
import sys
import threading

import torch

from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.model import initialize, load_template, model_name
from ascend_patch.generation.options import add_engine_arguments, add_template_argument, build_engine
from ascend_patch.generation.server import Service


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The script's own arguments, beside Megatron-LM's."""
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--served-model-name", help="default: the name of the folder of its weights")
    group.add_argument("--max-requests", type=int, default=64, help="under way or waiting; others get status 429")
    add_template_argument(parser)
    return add_engine_arguments(parser)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        GenerationError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise GenerationError(
            f"--host {host} --port {port} cannot be used: {error.strerror}. Name another port, or end what has it."
        ) from error
    return found


def serve(service: Service, args: argparse.Namespace, address: socket.socket) -> threading.Thread:
    """Start HTTP in a thread of this process; it ends with the service."""
    import uvicorn

    from ascend_patch.generation.openai_api import create_app

    name = args.served_model_name or model_name(args)
    app = create_app(service, load_template(args), name)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))

    def stop(*_: object) -> None:
        service.stop()
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [address]}, name="http")
    thread.start()
    host, port = address.getsockname()[:2]
    print(f"Serving {name} at http://{host}:{port}/v1", file=sys.stderr, flush=True)
    return thread


def main() -> None:
    """See the module's docstring."""
    args = initialize(arguments)
    first = torch.distributed.get_rank() == 0
    address = bound_socket(args.host, args.port) if first else None  # before the model, which takes its time
    service = Service(build_engine(args), args.max_requests)
    if address is not None:
        thread = serve(service, args, address)
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # torchrun sends it to every rank; rank 0 ends them all
    service.run()
    if first:
        thread.join()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
