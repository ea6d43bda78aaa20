"""URLs with a password or a signature in them. Those of a sweep stand in its folder, its reports,
logs, trackers and in the job's page, so it takes none.
"""

import re

from trainables.errors import InputError

CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<who>[^/?#\s]*)@")
PARAMETER = re.compile(r"(?P<start>[?&;])(?P<name>[^=&;#\s]+)=(?P<value>[^&;#\s]+)")
# of AWS, Google, Azure and those who hand out links: what is signed, or by whom
SECRET = re.compile(
    r"(?i)(x-(amz|goog)-(signature|credential|security-token)|sig|signature|auth|authorization"
    r"|awsaccesskeyid|googleaccessid|(.*[-_.])?(key|token|secret|password|passwd|pwd))"
    r"|.*(accesstoken|apikey|accesskey|secretkey)"
)
HIDDEN = "***"


def refuse_secrets(url: str, where: str = "") -> None:
    """Raise InputError where `url`, or a text with URLs in it, holds a secret. where: the setting
    that it is of.
    """
    if redacted(url) != url:
        raise InputError(
            f"{where and f'{where}: '}{redacted(url)} has a password or a signature in it (***),"
            " which would stand in the sweep's folder, reports and logs; leave it out: keys belong"
            " into the environment of the machines that read it"
        )


def redacted(text: str) -> str:
    """`text` with what is secret in its URLs as `***`."""
    return PARAMETER.sub(_parameter, CREDENTIALS.sub(_credentials, text)) if "://" in text else text


def _credentials(found: re.Match[str]) -> str:
    # a user alone, as in sftp://me@host, or a container, as in abfs://data@account, is none; of a
    # web server it may be a token
    if ":" in found["who"] or found["scheme"].lower() in ("http", "https"):
        return f"{found['scheme']}://{HIDDEN}@"
    return found[0]


def _parameter(found: re.Match[str]) -> str:
    if SECRET.fullmatch(found["name"]):
        return f"{found['start']}{found['name']}={HIDDEN}"
    return found[0]
