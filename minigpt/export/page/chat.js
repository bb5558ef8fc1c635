"use strict";
// Turn messages into ids, as fine-tuning wrote them (tokenizers/chat_template.py); the oldest are left out when the
// context is full (generation/chat/conversation.py).

// Pieces of text that are encoded separately: { text, learned, ends }; the end of text follows the last one
function spellChat(messages, chat, hasEos) {
  const [space, after] = chat.assistant.split("{}").map((part, at) => (at ? part : part.slice(chat.lead.length)));
  const pieces = messages.flatMap(({ role, content }) => {
    if (role !== "assistant") return [{ text: chat[role].split("{}").join(content) }];
    return [{ text: chat.lead }, { text: space + content + (hasEos ? "" : after), learned: true, ends: hasEos },
      ...(hasEos ? [{ text: after }] : [])];
  });
  const joined = [];
  for (const piece of [...pieces, { text: chat.lead }]) {
    const last = joined.at(-1);
    if (last && !piece.learned && !last.learned) joined[joined.length - 1] = { text: last.text + piece.text };
    else if (piece.text) joined.push(piece);
  }
  return joined;
}

function encodeChat(messages, chat, tokenizer) {
  return spellChat(messages, chat, tokenizer.eos !== null).flatMap(({ text, ends }) => [
    ...tokenizer.encode(text), ...(ends ? [tokenizer.eos] : [])]);
}

// The first place, from 0 to count - 1, where a test holds, if it holds at all later places too; else `count`
function firstPlace(count, holds) {
  let low = 0, high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The newest turns that leave room for an answer: { ids, cut }
function fitChat(messages, about, tokenizer, most) {
  const limit = about.shape.max_seq_len, room = Math.min(most, Math.floor(limit / 2));
  const encode = (some) => encodeChat(some, about.chat, tokenizer);
  const head = messages[0].role === "system" ? messages.slice(0, 1) : [], turns = messages.slice(head.length);
  const starts = turns.flatMap(({ role }, at) => (at === 0 || role === "user" ? [at] : []));
  const from = (first) => [...head, ...turns.slice(starts[first])];
  const kept = from(firstPlace(starts.length - 1, (first) => encode(from(first)).length <= limit - room));
  const long = encode(kept).length > limit;
  if (long) for (let at = head.length; at < kept.length; at++) {
    const chars = [...kept[at].content];
    const without = (count) => kept.with(at, { ...kept[at], content: chars.slice(count).join("") });
    kept[at] = without(firstPlace(chars.length, (count) => encode(without(count)).length <= limit - room))[at];
  }
  const ids = encode(kept), nothingLeft = long && head.length && !kept.slice(1).some(({ content }) => content);
  if (nothingLeft || ids.length > limit) throw new Error("The system text leaves no room in the context; write a shorter one.");
  return { ids, cut: kept.length < messages.length || kept.some((message, at) => message !== messages.at(at - kept.length)) };
}
