"""The thesaurus of unknown words: t2l/model/wordnet_words.txt, made from WordNet."""
