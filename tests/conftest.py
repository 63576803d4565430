"""Shared fixtures: where the benchmarks' data lie, the command line, an object store, and one thread per process."""

import gc
import logging
import os
import secrets
import socket
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("zcpipe", deadline=None)  # no test asserts a time
settings.load_profile("zcpipe")


def pytest_collection_finish() -> None:
    """Spare the collector what lives as long as the tests: torch's modules and thousands of items."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data():
    """Find a file of benchmark data by name; skip the test, saying which file, where it is absent."""
    root = os.environ.get("ZCPIPE_DATA")

    def find(name):
        if root is None:
            pytest.skip(f"needs {name}: set ZCPIPE_DATA to the folder that holds it")
        path = Path(root) / name
        if not path.exists():
            pytest.skip(f"needs {path}, which does not exist")
        return path

    return find


@pytest.fixture
def zcpipe(monkeypatch, capsys):
    """Run a command; return exit code, standard output and standard error."""
    from zcpipe.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["zcpipe", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def endpoint():
    """An S3 server within this process, which children reach, too."""
    server = pytest.importorskip("moto.server", reason="moto, a development dependency, is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every request
    running = server.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    running.start()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def s3(monkeypatch):
    """Let this process and its children know no store and no credentials; return a function that tells them some."""
    s3fs = pytest.importorskip("s3fs")

    def tell(**variables):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {"EC2_METADATA_DISABLED": "true", "CONFIG_FILE": os.devnull, **variables}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()  # clients that were made before know another environment

    tell()
    return tell


@pytest.fixture
def bucket(endpoint, s3):
    """The URI of an empty bucket."""
    s3(ENDPOINT_URL=endpoint, ACCESS_KEY_ID="a", SECRET_ACCESS_KEY="b", DEFAULT_REGION="us-east-1")
    import s3fs

    name = f"test-{secrets.token_hex(8)}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
