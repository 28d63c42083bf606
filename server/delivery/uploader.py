"""Uploads of finished images to URLs that tasks name, tried again where that can help."""

import asyncio
import logging
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from server.delivery.backoff import backoff_s
from server.delivery.egress import Egress, EgressError, OutgoingRequest
from server.delivery.images import media_type
from server.runware.errors import TaskError
from server.settings import EgressSettings

log = logging.getLogger(__name__)

# Of the answers that refuse, those that may differ next time; and every 5xx.
_PASSING = (408, 429)


class Uploader:
    """Puts images to endpoints: S3, Google Cloud Storage, Azure Blob Storage or any other."""

    def __init__(self, settings: EgressSettings, egress: Egress) -> None:
        self._settings = settings
        self._egress = egress

    async def upload(
        self, url: str, name: str, encoded: bytes, trace_headers: Mapping[str, str]
    ) -> None:
        """PUT an image's bytes, with the headers of a trace if there is one.

        Raises:
            TaskError: the endpoint did not take them in any of the tries.
        """
        request = OutgoingRequest(
            method="PUT",
            url=url,
            body=encoded,
            content_type=media_type(name),
            headers={**azure_headers(url), **trace_headers},
        )
        for num_tries in range(1, self._settings.upload_tries + 1):
            try:
                await self._egress.send(request)
            except EgressError as e:
                if num_tries == self._settings.upload_tries or not _may_pass(e):
                    raise _failure(e) from None
                delay_s = backoff_s(num_tries)
                log.warning("upload of %s failed (%s); again in %.1f s", name, e, delay_s)
                await asyncio.sleep(delay_s)
            else:
                return


def azure_headers(url: str) -> dict[str, str]:
    """Return the header without which Azure refuses a Put Blob, for its SAS URLs.

    Source: Azure's REST reference, Put Blob; `sv` and `sig` are in every SAS URL, also in those of
    a storage account behind a domain of its own.
    """
    parts = urlsplit(url)
    is_azure = ".blob.core." in (parts.hostname or "")
    is_signed = {"sv", "sig"} <= parse_qs(parts.query).keys()
    return {"x-ms-blob-type": "BlockBlob"} if is_azure or is_signed else {}


def _may_pass(error: EgressError) -> bool:
    if error.status is None:
        return error.is_worth_retrying
    return error.status >= 500 or error.status in _PASSING


def _failure(error: EgressError) -> TaskError:
    return TaskError("uploadFailed", f"The image could not be uploaded: {error}.", "uploadEndpoint")
