"""DDPG agent with one continuous action, as pure functions."""

from haqjax.agent.ddpg import DDPG, Agent, AgentState, make_agent

__all__ = ["DDPG", "Agent", "AgentState", "make_agent"]
