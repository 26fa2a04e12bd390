"""A finished video, sent to where its orderer wants it: one PUT, as the signed URLs of object stores take it."""

from pathlib import Path
from threading import Event

from gateway.fetching import Sent, UrlFetcher
from lipserve.errors import Cancelled, DeliveryFailed, FetchFailed, UrlNotAllowed

WAITS = (2.0, 10.0)  # seconds before the second and before the third attempt
PASSES = (408, 425, 429)  # statuses that another attempt may change, beside 5xx
HEADERS = {"content-type": "video/mp4"}


def deliver(fetcher: UrlFetcher, url: str, video: Path, sent: Sent, cancelled: Event) -> None:
    """Blocks. `sent`: see UrlFetcher.put; it begins anew with each attempt. Raises DeliveryFailed or Cancelled."""
    for wait in (*WAITS, None):
        try:
            status = fetcher.put(url, video, HEADERS, sent, cancelled)
        except FetchFailed as exc:
            reason, passes = exc.message, True
        except UrlNotAllowed as exc:  # only its name's addresses can say so now
            reason, passes = exc.message, False
        else:
            if 200 <= status < 300:
                return
            reason, passes = f"The URL's server answered {status}.", status in PASSES or status >= 500
        if wait is None or not passes:
            break
        if cancelled.wait(wait):
            raise Cancelled("The request was cancelled while its video was sent.")
    hint = "Give a URL that takes an mp4 by PUT, or none: the video is then at the talk's own result_url."
    raise DeliveryFailed(f"The video is made, and could not be sent to result_url. {reason}", hint)
