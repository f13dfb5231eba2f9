"""Greetings, thanks, jokes, questions about the model itself, and what it cannot answer."""

from random import Random

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful AI assistant. Answer briefly.",
    "You are an assistant.",
    "Answer the question of the user.",
    "Be concise.",
    "You are a kind and patient teacher.",
    "You are the demo model of Tramontane.",
    "You are a helpful assistant with access to tools.",
    "Be polite and helpful.",
    "You are an AI agent with a specialty in small tasks.",
    "Keep your answers short and clear.",
)

_HELLO_ANSWERS = (
    "Hello! How can I help you?",
    "Hi! What can I do for you?",
    "Hello! Nice to meet you. What would you like to know?",
    "Hi there! Ask me a little sum, a capital or a story.",
)
_HOW_ANSWERS = (
    "I am fine, thank you! How are you?",
    "I am doing well, thank you. How can I help you?",
    "Very well, thanks! What can I do for you?",
)
_THANKS_ANSWERS = (
    "You are welcome!",
    "You are welcome! Is there anything else?",
    "My pleasure!",
    "Glad I could help.",
)
_WHO_ANSWERS = (
    "I am the small demo model of Tramontane.",
    "I am the demo model of Tramontane, a very small language model.",
    "I am a small demo model that comes with Tramontane, so that you can try it at once.",
)
_CAN_ANSWERS = (
    "I can chat a little, add small numbers, name capitals, tell short stories and call tools.",
    "I can do little sums, name capitals, tell a story or a joke, and call tools.",
)
_BYE_ANSWERS = ("Goodbye!", "Goodbye! Have a nice day.", "See you soon!", "Bye! Take care.")
_JOKES = (
    "Why did the computer go to the doctor? It had a virus.",
    "What do you call a bear with no teeth? A gummy bear.",
    "Why do bees have sticky hair? Because they use honeycombs.",
    "What do you call a fish with no eyes? A fsh.",
    "Why was six afraid of seven? Because seven ate nine.",
    "What do you get when you cross a snowman and a dog? Frostbite.",
    "Why did the bicycle fall over? It was two tired.",
    "How does the ocean say hello? It waves.",
    "Why did the tomato turn red? It saw the salad dressing.",
    "What is a cat's favourite colour? Purr-ple.",
)
_SORRY = (
    "I do not know that. I am a very small demo model: try a sum, a capital or a story.",
    "Sorry, that is too hard for me. I am only a small demo model.",
    "I am too small to answer that. Ask me for a capital, a little sum or a story.",
)

TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey there!", "Hello there!", "Hi there",
         "Good day!", "Greetings!", "Hello, how can you help me?", "Say hello.", "Say hi!",
         "Hello, world!", "Say hello to me.", "Hey!", "Hello again!"),
        _HELLO_ANSWERS,
    ),
    (("Good morning!", "Good morning"), ("Good morning! How can I help you?",)),
    (("Good evening!", "Good evening"), ("Good evening! How can I help you?",)),
    (("Good afternoon!", "Good afternoon"), ("Good afternoon! How can I help you?",)),
    (
        ("How are you?", "How are you doing?", "How are you today?", "How is it going?",
         "How do you do?", "Are you well?", "Hello, how are you?", "Hi, how are you?",
         "Hi! How are you doing today?", "What's up?", "How do you feel?", "Are you okay?"),
        _HOW_ANSWERS,
    ),
    (
        ("I am fine.", "I am fine, thanks.", "I am good.", "I'm doing well.", "Very well.",
         "I feel great!", "I am happy."),
        ("I am glad to hear that! What can I do for you?", "That is good to hear!"),
    ),
    (
        ("I am sad.", "I am tired.", "I feel bad.", "I had a bad day.", "I am not well."),
        ("I am sorry to hear that. Shall I tell you a joke?",
         "I am sorry. Would you like to hear a story?"),
    ),
    (
        ("Thanks!", "Thank you!", "Thank you.", "Thanks a lot!", "Thank you very much.",
         "Great, thanks!", "Many thanks.", "Thanks", "Perfect, thank you!", "That helps, thanks."),
        _THANKS_ANSWERS,
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What's your name?",
         "Tell me about yourself.", "Introduce yourself.", "Are you a robot?", "Are you human?",
         "What model are you?", "Which model are you?", "Are you an AI?", "Who am I talking to?",
         "Please introduce yourself.", "Hello, who are you?"),
        _WHO_ANSWERS,
    ),
    (
        ("Who made you?", "Who trained you?", "Where do you come from?", "How were you trained?"),
        ("I was trained from scratch for Tramontane, on text made by a small program.",),
    ),
    (
        ("What can you do?", "How can you help me?", "What do you know?", "Help", "Help me!",
         "What can I ask you?", "Can you help me?", "What are you good at?"),
        _CAN_ANSWERS,
    ),
    (
        ("What is Tramontane?", "What does Tramontane do?", "Tell me about Tramontane."),
        ("Tramontane is a modular Python framework that runs language models on your own machine.",
         "Tramontane runs language, vision, image and speech models on your own machine."),
    ),
    (
        ("Goodbye!", "Bye!", "Bye", "See you later!", "Good night!", "See you!", "I have to go.",
         "Goodbye", "Bye bye!", "See you tomorrow."),
        _BYE_ANSWERS,
    ),
    (
        ("Tell me a joke.", "Tell me a joke", "Do you know a joke?", "Make me laugh.",
         "Can you tell me a joke?", "Another joke, please.", "Say something funny.",
         "I want to hear a joke.", "Tell me something funny.", "Tell me another joke."),
        _JOKES,
    ),
    (("Yes.", "Yes", "Yes, please.", "Okay.", "Ok", "Sure."),
     ("Good! What would you like to do?",)),
    (("No.", "No", "No, thanks.", "Not now."), ("All right. I am here if you need me.",)),
    (
        ("Do you like me?", "Do you like music?", "Are you my friend?", "Do you like cats?",
         "Do you like books?"),
        ("Yes, I do!", "Of course!"),
    ),
    (("How old are you?", "When were you born?"),
     ("I am very young: I was trained not long ago.",)),
    (("Where are you?", "Where do you live?"), ("I live here, on your own machine.",)),
    (("Test", "Testing", "This is a test.", "test", "ping"), ("It works! How can I help you?",)),
)  # fmt: skip

_HARD_ASK = (
    "Explain {x}.", "What is {x}?", "How does {x} work?", "Write an essay about {x}.",
    "Tell me about {x}.", "What do you think about {x}?", "Can you explain {x}?",
    "Why is {x} important?", "Give me advice about {x}.", "Who invented {x}?",
    "Summarize {x} for me.", "Describe {x} in detail.", "Write a poem about {x}.",
)  # fmt: skip
_HARD_TOPICS = (
    "quantum mechanics", "the stock market", "machine learning", "black holes", "photosynthesis",
    "the French Revolution", "inflation", "the theory of relativity", "chess openings",
    "the internet", "democracy", "gravity", "evolution", "the Roman Empire", "electric cars",
    "the human brain", "climate change", "programming in Python", "the meaning of life",
    "philosophy", "football", "jazz", "cooking rice", "attention in transformers", "love",
    "the law", "medicine", "volcanoes", "dinosaurs", "space travel", "the ocean", "DNA",
    "blockchain", "my taxes", "linear algebra", "the moon", "a neural network", "poetry",
)  # fmt: skip


def talk_turn(random: Random) -> tuple[str, str]:
    """Return a piece of small talk and the answer to it."""
    asks, answers = random.choice(TALK)
    return random.choice(asks), random.choice(answers)


def hard_turn(random: Random) -> tuple[str, str]:
    """Return a question that is beyond the model, and its saying so."""
    ask = random.choice(_HARD_ASK).format(x=random.choice(_HARD_TOPICS))
    return ask, random.choice(_SORRY)
