# SPDX-License-Identifier: Apache-2.0
"""Who and where: the Resource of every observed process, and of the agent."""

from otelbpf.identity.host import agent_resource, host_attributes
from otelbpf.identity.process import Processes

__all__ = ["Processes", "agent_resource", "host_attributes"]
