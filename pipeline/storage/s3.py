"""A store in an S3 bucket, on Amazon's or any server with conditional writes (If-None-Match, If-Match)."""

import contextlib
import io
import itertools
import logging
import os
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from pipeline.errors import ChangedObjectError, MissingObjectError, StorageError
from pipeline.storage.store import CHUNK, Entry, ObjectInfo, Store, Unfinished, check_key
from pipeline.tracking.facts import carries_credentials, redact

logging.getLogger("botocore").setLevel(logging.WARNING)  # Ray's workers print what is below, some lines at each request

ATTEMPTS = 5  # of a request that met a fault of network or server, of a write that met a conflict, of a broken download
CONNECT_SECONDS, READ_SECONDS = 3, 60  # longest silence of the server's in one attempt
_TRANSFER = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=32 << 20, max_concurrency=4)
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket; create it or correct the URL",
    "InvalidBucketName": "this is not a bucket name; correct the URL",
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": "the credentials have expired; renew them",
    "AccessDenied": "these credentials may not do this; grant read, write, list and delete on the bucket",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "NotImplemented": "the server lacks this; if it is checksums, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    # Replies without S3's error body: to HEAD, or from a server that is not S3.
    "301": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "403": "the credentials are wrong or may not do this; check them, and the rights on the bucket",
    "404": "the address answers, but not as an S3 server does; check AWS_ENDPOINT_URL",
}


class S3Store(Store):
    """Objects of `bucket` beneath `prefix` ("" = the whole bucket)."""

    def __init__(self, bucket: str, prefix: str = ""):
        self.bucket = bucket
        self.base = f"{check_key(prefix)}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
            if carries_credentials(os.environ.get(variable, "")):
                raise StorageError(
                    f"{variable}: {redact(os.environ[variable])}: an endpoint must not carry credentials, they would end in logs; "
                    "use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
                )
        named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")  # boto3 reads these itself
        endpoint = None if named else os.environ.get("MLFLOW_S3_ENDPOINT_URL")
        # Servers other than Amazon's seldom answer to bucket.host; MLflow's variable decides for both of us.
        style = os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE") or ("path" if named or endpoint else "auto")
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": style},
            response_checksum_validation="when_required",  # whoever reads a checkpoint compares its own sha256
        )
        try:
            session = boto3.session.Session()
            self._client = session.client("s3", endpoint_url=endpoint, config=config)
            self._creator = session.client("s3", endpoint_url=endpoint, config=config)
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"{self.url}: {redact(str(error))}; check the AWS settings") from None
        # boto3's transfer manager does not let a caller say "create only", so its client says it.
        for request in ("PutObject", "CompleteMultipartUpload"):
            self._creator.meta.events.register(f"provide-client-params.s3.{request}", _create_only)
        wanted = self._client.meta.config.request_checksum_calculation != "when_required"
        self._checksum = {"ChecksumAlgorithm": "SHA256"} if wanted else {}

    def create(self, key: str, source: Path | bytes) -> bool:
        name = self._name(key)
        with self._errors("write", key):
            if isinstance(source, Path) and self._exists(name):
                return False  # known before a large file is sent
            for attempt in itertools.count(1):
                content = str(source) if isinstance(source, Path) else io.BytesIO(source)
                try:
                    with create_transfer_manager(self._creator, _TRANSFER) as transfers:
                        transfers.upload(content, self.bucket, name, dict(self._checksum)).result()
                    return True
                except ClientError as error:
                    if _status(error) == 412:
                        return False
                    if _status(error) != 409 or attempt == ATTEMPTS:
                        raise
                    _pause(attempt)

    def chunks(self, key: str, start: int = 0, version: str | None = None) -> Iterator[bytes]:
        """From byte `start` on; ChangedObjectError where the object is not that of `version`, or ends before `start`."""
        name, offset, breaks = self._name(key), start, 0
        same = ({"Range": f"bytes={start}-"} if start else {}) | ({"IfMatch": version} if version else {})
        with self._errors("read", key):
            while True:
                reply = self._client.get_object(Bucket=self.bucket, Key=name, **same)
                try:
                    for chunk in reply["Body"].iter_chunks(CHUNK):
                        offset += len(chunk)
                        yield chunk
                    return
                except (HTTPClientError, IncompleteReadError):  # cut off: go on from here, in the same object
                    breaks += 1
                    if breaks == ATTEMPTS:
                        raise
                    same = {"Range": f"bytes={offset}-", "IfMatch": reply["ETag"]}
                    _pause(breaks)

    def entries(self, prefix: str = "") -> list[Entry]:
        folder = f"{self._name(prefix)}/" if prefix else self.base
        with self._errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
            found = [
                Entry(item["Key"].removeprefix(self.base), item["Size"], item["LastModified"].timestamp())
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")  # which marks a folder
            ]
        return sorted(found)

    def info(self, key: str) -> ObjectInfo:
        """Size and ETag of an object; MissingObjectError if there is none."""
        with self._errors("read", key):
            try:
                reply = self._client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if _status(error) == 404:  # HEAD has no body to say more
                    raise MissingObjectError(f"cannot read {self.url_of(key)}: there is no such object") from None
                raise
        return ObjectInfo(reply["ContentLength"], reply["ETag"])

    def listing(self, folder: str = "") -> dict[str, ObjectInfo]:
        """Size and ETag of each object beneath a folder ("" and "." = everything)."""
        prefix = f"{self._name(folder)}/" if folder not in ("", ".") else self.base
        with self._errors("list", folder):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            items = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"].removeprefix(self.base): ObjectInfo(item["Size"], item["ETag"]) for item in items}

    def read_pointer(self, key: str) -> tuple[bytes | None, str | None]:
        try:
            with self._errors("read", key):
                reply = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
                return reply["Body"].read(), reply["ETag"]
        except MissingObjectError:
            return None, None

    def swap_pointer(self, key: str, data: bytes, expected_etag: str | None) -> bool:
        condition = {"IfMatch": expected_etag} if expected_etag else {"IfNoneMatch": "*"}
        place = {"Bucket": self.bucket, "Key": self._name(key)}
        writer = uuid.uuid4().hex
        with self._errors("write", key):
            for attempt in itertools.count(1):
                try:
                    self._client.put_object(**place, **condition, **self._checksum, Body=data, Metadata={"writer": writer})
                    return True
                except ClientError as error:
                    if _status(error) == 412 or _code(error) == "NoSuchKey":
                        # A request repeated because its reply was lost may be refused because of its own first success.
                        repeated = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                        return repeated and self._client.head_object(**place)["Metadata"].get("writer") == writer
                    if _status(error) != 409 or attempt == ATTEMPTS:
                        raise
                    _pause(attempt)

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def unfinished(self) -> list[Unfinished]:
        with self._errors("list", ""):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.base)
            found = [
                Unfinished(item["Key"].removeprefix(self.base), 0, item["Initiated"].timestamp(), item["UploadId"])
                for page in pages
                for item in page.get("Uploads", ())
                if item["Key"].startswith(self.base)
            ]
        return sorted(found)

    def abandon(self, part: Unfinished) -> None:
        with self._errors("delete", part.key):
            try:
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=self.base + part.key, UploadId=part.id)
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise

    def url_of(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._name(key)}" if key else self.url

    def _name(self, key: str) -> str:
        return self.base + check_key(key)

    def _exists(self, name: str) -> bool:
        try:
            self._client.head_object(Bucket=self.bucket, Key=name)
        except ClientError as error:
            if _status(error) == 404:  # of the object or of its bucket; the write that follows tells which
                return False
            raise
        return True

    @contextlib.contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        where = f"cannot {action} {self.url_of(key)}"
        try:
            yield
        except ClientError as error:
            if _code(error) == "NoSuchKey":
                raise MissingObjectError(f"{where}: there is no such object") from None
            if action == "read" and _status(error) in (412, 416):
                raise ChangedObjectError(f"{where}: the object has changed since reading began; try again") from None
            said = redact(error.response["Error"].get("Message") or f"the server answered {_code(error)}")
            raise StorageError(f"{where}: {_REMEDIES.get(_code(error), said)} ({_code(error)})") from None
        except (NoCredentialsError, PartialCredentialsError):
            raise StorageError(
                f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"
            ) from None
        except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
            raise StorageError(
                f"{where}: no connection to {redact(self._client.meta.endpoint_url)} ({type(error).__name__}); check that the "
                "server runs, and the address in AWS_ENDPOINT_URL"
            ) from None
        except BotoCoreError as error:
            raise StorageError(f"{where}: {' '.join(redact(str(error)).split())}") from None
        except OSError as error:
            raise StorageError(f"{where}: cannot read {error.filename}: {error.strerror}") from None


def _create_only(params: dict[str, Any], **_: Any) -> None:
    params["IfNoneMatch"] = "*"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.2 * 2**attempt))
