"""How a payload stays readable or unreadable on its way: pure functions from bytes to bytes.

A scheme never touches a link, a store or a clock. The relay hands it pads and carries its payload
(`keyhaul.messages.payload.Scheme`).
"""
