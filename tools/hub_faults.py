"""What the hub, the network and the disk do to a download, in words that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


class DownloadError(ValueError):
    """A checkpoint cannot be downloaded; the message says why, and what to do."""

    code = "downloadFailed"


@contextmanager
def hub_faults(repository: str, revision: str) -> Iterator[None]:
    """Turn faults of the hub, the network and the disk into a DownloadError."""
    again = "run the same command again: it goes on where it stopped"
    try:
        yield
    except OfflineModeIsEnabled:
        raise DownloadError(
            "HF_HUB_OFFLINE is set, which forbids downloads; run it with HF_HUB_OFFLINE=0"
        ) from None
    except RevisionNotFoundError:
        raise DownloadError(f"{repository} has no revision {revision}; leave --revision") from None
    except GatedRepoError:
        raise DownloadError(_refused(repository)) from None
    except RepositoryNotFoundError:
        raise DownloadError(
            f"the hub has no {repository} for you. {_refused(repository)}"
        ) from None
    except HfHubHTTPError as e:
        status = e.response.status_code
        if status in (401, 403):
            raise DownloadError(_refused(repository)) from None
        raise DownloadError(f"the hub answered {status} for {repository}; {again}") from None
    except httpx2.HTTPError as e:
        raise DownloadError(
            f"the hub cannot be reached, or went away ({type(e).__name__}: {e}); see that this "
            f"machine reaches it (HF_ENDPOINT names another, HTTPS_PROXY a proxy), and {again}"
        ) from None
    except OSError as e:
        raise DownloadError(f"{repository} could not be stored: {e}; {again}") from None


def _refused(repository: str) -> str:
    return (
        f"The hub gives {repository} only to accounts that may read it: accept the conditions on "
        "its page there, make a token with read access in your account, and set it in HF_TOKEN"
    )
