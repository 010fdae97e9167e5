# SPDX-License-Identifier: Apache-2.0
"""A client without instrumentation: python client.py urllib|requests URL COUNT."""

import sys
from urllib.request import urlopen

import requests

library, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if library == "urllib":  # a connection each
    for _ in range(count):
        with urlopen(url) as response:
            response.read()
else:
    with requests.Session() as session:
        for _ in range(count):
            session.get(url).raise_for_status()
