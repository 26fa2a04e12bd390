"""Where a file of a Hugging Face repository can be read from. The only module that imports huggingface_hub.

The library says where (HF_ENDPOINT), as whom (HF_TOKEN) and whether at all (HF_HUB_OFFLINE). The bytes themselves come
through `web.py`: the library (2.4) begins a download that was stopped anew in the next run, and the UNet has 3.4 GB.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from lipserve.errors import ModelsMissing
from lipserve.weights.manifest import HubFile
from lipserve.weights.web import DownloadFailed


@dataclass(frozen=True)
class Located:
    """A file's address for the next minutes. `headers` hold the token, if the address is to see it."""

    url: str
    headers: dict[str, str]
    schemes: frozenset[str]


def locate(file: HubFile) -> Located:
    """Ask the Hub. Raises DownloadFailed, or ModelsMissing without the library."""
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils import build_hf_headers
    except ImportError as exc:
        raise ModelsMissing(
            "Fetching from Hugging Face needs the package huggingface_hub.", "Run: pip install 'lipserve[models]'"
        ) from exc
    url = hf_hub_url(file.repo, file.file, revision=file.revision)
    asked = urlsplit(url)
    try:
        location = get_hf_file_metadata(url).location
    except OfflineModeIsEnabled as exc:
        raise DownloadFailed("HF_HUB_OFFLINE is set", unreachable=True) from exc
    except GatedRepoError as exc:
        raise DownloadFailed(f"{file.repo} asks for consent on its page, and for your HF_TOKEN") from exc
    except RevisionNotFoundError as exc:
        raise DownloadFailed(f"{asked.netloc} has no revision {file.revision} of {file.repo}") from exc
    except RepositoryNotFoundError as exc:
        raise DownloadFailed(f"{asked.netloc} has no {file.repo}, or does not show it to you (HF_TOKEN)") from exc
    except EntryNotFoundError as exc:
        raise DownloadFailed(f"{file.repo} has no {file.file} at revision {file.revision}") from exc
    except HfHubHTTPError as exc:
        answer = exc.response
        raise DownloadFailed(f"{asked.netloc} answered {answer.status_code} {answer.reason_phrase}") from exc
    except Exception as exc:  # the HTTP library beneath, and the base of its errors, changes with each major version
        raise DownloadFailed(f"{asked.netloc} cannot be reached: {exc}", unreachable=True) from exc
    headers: dict[str, str] = {}
    if urlsplit(location).netloc == asked.netloc:
        headers = {name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"}
    schemes = frozenset({"https", urlsplit(constants.ENDPOINT).scheme})
    return Located(location, headers, schemes)
