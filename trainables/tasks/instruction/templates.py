def chat_template(tokenizer, setting):
    from trainables.tasks.instruction.format import default_chat_template

    return tokenizer.chat_template or default_chat_template(tokenizer)
