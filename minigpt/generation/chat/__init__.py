"""Hold a conversation with a model: the session, its commands, saved chats. None of this needs a terminal."""

from minigpt.generation.chat.commands import COMMANDS, Commands, Reply
from minigpt.generation.chat.conversation import Message, Plain, Turns
from minigpt.generation.chat.saved import load_session, save_session
from minigpt.generation.chat.session import Session

__all__ = [
    "COMMANDS",
    "Commands",
    "Message",
    "Plain",
    "Reply",
    "Session",
    "Turns",
    "load_session",
    "save_session",
]
