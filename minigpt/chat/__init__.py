"""A conversation with a model: the session knows no terminal, commands are lines of text, lines come from anywhere."""

from minigpt.chat.commands import COMMANDS, Commands, Reply
from minigpt.chat.file import load_session, save_session
from minigpt.chat.session import Alternatives, Ended, Session
from minigpt.chat.spelling import Message, Plain, Spelling, Turns

__all__ = [
    "COMMANDS",
    "Alternatives",
    "Commands",
    "Ended",
    "Message",
    "Plain",
    "Reply",
    "Session",
    "Spelling",
    "Turns",
    "load_session",
    "save_session",
]
