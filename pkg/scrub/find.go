package scrub

import (
	"bytes"
	"cmp"
	_ "embed"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// finder finds the identifiers of one document: the regular ones by their
// form, the people by what the document declares of them.
type finder struct {
	trie  map[uint64]int32    // (node, hash of a folded word) -> node; the root is 0
	nodes []node              // by number
	byID  map[string]identity // login, e-mail address or account id, by plainID
	words []word              // of the text at hand
	cuts  []Span
}

// node is a sequence of words that an identity begins with.
type node struct {
	name  int32 // the person whose name ends here, shared or nobody
	exact bool  // an identity of byID ends here
}

const (
	shared = -1 // the name of two people is the identity of neither
	nobody = -2
)

// identity is one that its punctuation belongs to: a login, address or id.
type identity struct {
	person int32
	label  Label
	common bool // a login that is an English word
}

type word struct {
	start, end int
	hash       uint64
}

// English words that are no one's first name: a login that is one of them is
// an identifier only where the text uses it as a user. Lower case, one a line;
// a public-domain word list less the given names of the US Social Security
// Administration's (public domain).
//
//go:embed words.txt
var wordsFile string

var englishWords = sync.OnceValue(func() map[string]bool {
	m := make(map[string]bool, 45000)
	for w := range strings.Lines(wordsFile) {
		m[strings.TrimSuffix(w, "\n")] = true
	}
	return m
})

// CommonWord reports whether a login is an English word, so that texts use it
// without meaning its owner.
func CommonWord(login string) bool { return englishWords()[strings.ToLower(login)] }

const (
	maxNameWords = 32 // words of one identity that are looked at
	maxSeparator = 8  // bytes between two words of one name: "Roe, Jane", "**Jane** **Roe**"
	largeTrie    = 1 << 12
)

// setPeople takes the people of the next texts. Each holds the identities of
// one person separated by NUL, a login after a '~'.
func (f *finder) setPeople(people [][]byte) {
	if f.trie == nil || len(f.trie) > largeTrie {
		// Clearing a map costs its capacity: one record with thousands of
		// people must not slow down all that follow.
		f.trie, f.byID = map[uint64]int32{}, map[string]identity{}
	}
	clear(f.trie)
	clear(f.byID)
	f.nodes = append(f.nodes[:0], node{name: nobody})
	for i, p := range people {
		for len(p) > 0 {
			var id []byte
			id, p, _ = bytes.Cut(p, []byte{0})
			f.addIdentity(id, int32(i))
		}
	}
}

func (f *finder) addIdentity(b []byte, person int32) {
	id := identity{person: person}
	if len(b) > 1 && b[0] == '~' {
		b, id.label = b[1:], Username
	}
	s := plainID(bytes.TrimSpace(b))
	switch {
	case strings.IndexByte(s, ' ') >= 0:
	case strings.IndexByte(s, '@') > 0:
		id.label = Email
	case strings.IndexByte(s, ':') > 0 || len(s) == 24 && hexDigits([]byte(s)) == 24:
		id.label = AccountID
	}
	id.common = id.label == Username && englishWords()[s]
	f.words = appendWords(f.words[:0], []byte(s))
	if len(f.words) == 0 {
		return
	}
	exact := id.label != Person
	if exact {
		f.addExact(s, id)
	}
	if len(f.words) > maxNameWords {
		f.words = f.words[:maxNameWords] // a very long name is known by its first words
		exact = false
	}
	if exact {
		// In a text it is known from its first word to its last.
		f.addExact(s[f.words[0].start:f.words[len(f.words)-1].end], id)
	}
	at := int32(0)
	for _, w := range f.words {
		k := mix(at, w.hash)
		next, ok := f.trie[k]
		if !ok {
			next = int32(len(f.nodes))
			f.nodes = append(f.nodes, node{name: nobody})
			f.trie[k] = next
		}
		at = next
	}
	switch n := &f.nodes[at]; {
	case exact:
		n.exact = true
	case n.name == nobody:
		n.name = person
	case n.name != person:
		n.name = shared
	}
}

func (f *finder) addExact(s string, id identity) {
	if _, ok := f.byID[s]; !ok {
		f.byID[s] = id
	}
}

// personOf returns the person who declares the identity, or -1.
func (f *finder) personOf(id []byte) int32 {
	if d, ok := f.byID[plainID(id)]; ok {
		return d.person
	}
	return -1
}

func mix(node int32, h uint64) uint64 {
	return (h ^ uint64(node)*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
}

// isWord reports whether r belongs to a word: a letter, digit or the mark on one.
func isWord(r rune) bool {
	if r < utf8.RuneSelf {
		return 'a' <= r|0x20 && r|0x20 <= 'z' || '0' <= r && r <= '9'
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.Is(unicode.M, r)
}

// isUnspaced reports whether r is of a script that puts no space between
// words, or glues particles to them.
func isUnspaced(r rune) bool {
	return r >= 0x1100 && unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul)
}

// appendWords appends the words of text with a hash of each, lower-cased. A
// character of a script without word borders is a word, so that names in it
// are found inside of longer runs. A percent-encoded byte is not: in
// "assignee%3Djroe" the words are assignee and jroe.
func appendWords(dst []word, text []byte) []word {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a, 64 bit
	start, h := -1, uint64(offset)
	for i := 0; i < len(text); {
		c, n := text[i], 1
		r, isAWord, alone := rune(c), false, false
		switch {
		case 'a' <= c|0x20 && c|0x20 <= 'z':
			r, isAWord = rune(c|0x20), true
		case '0' <= c && c <= '9':
			isAWord = true
		case c == '%':
			if _, ok := percent(text[i:]); ok {
				n = 3
			}
		case c >= utf8.RuneSelf:
			r, n = utf8.DecodeRune(text[i:])
			isAWord, alone = isWord(r), isUnspaced(r)
			r = unicode.ToLower(r)
		}
		if start >= 0 && (alone || !isAWord) {
			dst = append(dst, word{start, i, h})
			start = -1
		}
		if isAWord {
			if start < 0 {
				start, h = i, offset
			}
			for ; r > 0; r >>= 8 {
				h = (h ^ uint64(r&0xff)) * prime
			}
		}
		i += n
		if alone && start >= 0 {
			dst = append(dst, word{start, i, h})
			start = -1
		}
	}
	if start >= 0 {
		dst = append(dst, word{start, len(text), h})
	}
	return dst
}

// percent returns the byte that a percent-encoding at the start of t stands for.
func percent(t []byte) (c byte, ok bool) {
	if len(t) < 3 || t[0] != '%' || hexDigits(t[1:3]) != 2 {
		return 0, false
	}
	for _, d := range t[1:3] {
		if d > '9' {
			d += 9
		}
		c = c<<4 | d&15
	}
	return c, true
}

// appendSpans appends the spans of text in order, without overlaps.
func (f *finder) appendSpans(dst []Span, text []byte) []Span {
	f.words = appendWords(f.words[:0], text)
	f.cuts = f.cuts[:0]
	for i := range f.words {
		f.nameAt(text, i)
		f.accountAt(text, i)
	}
	// No address holds an at sign, so each reaches at most to the one before:
	// every byte is looked at once from either side.
	for at, before := 0, 0; ; {
		i := bytes.IndexAny(text[at:], "@%&")
		if i < 0 {
			break
		}
		at += i
		n := atSign(text[at:])
		if n == 0 {
			at++
			continue
		}
		f.emailAt(text, before, at, at+n)
		if n == 1 {
			f.handleAt(text, at)
		}
		at += n
		before = at
	}
	for at := 0; ; {
		i := bytes.IndexByte(text[at:], '~')
		if i < 0 {
			break
		}
		at += i + 1
		if at > 1 && (text[at-2] == '[' || text[at-2] == '|') {
			f.mentionAt(text, at)
		}
	}
	return f.resolve(dst)
}

// precedence orders the labels of one range, such as the address in
// [~jroe@example.org]: the more particular is the larger.
var precedence = [NumLabels]int{Person: 0, Username: 1, Email: 2, AccountID: 3}

// resolve appends the cuts in order. Of two that overlap the longer gives the
// label and the person, and their union is removed, so that no part of either
// stays.
func (f *finder) resolve(dst []Span) []Span {
	slices.SortFunc(f.cuts, func(a, b Span) int {
		return cmp.Or(a.Start-b.Start, b.End-a.End, precedence[b.Label]-precedence[a.Label], int(b.Person-a.Person))
	})
	from := len(dst)
	longest := 0 // of the cuts that the last span unites
	for _, c := range f.cuts {
		last := len(dst) - 1
		if last < from || c.Start >= dst[last].End {
			dst = append(dst, c)
			longest = c.End - c.Start
			continue
		}
		s := &dst[last]
		s.End = max(s.End, c.End)
		if n := c.End - c.Start; n > longest {
			s.Label, s.Person, longest = c.Label, c.Person, n
		}
	}
	return dst
}

// nameAt finds the longest identity that begins at word i.
func (f *finder) nameAt(text []byte, i int) {
	at, best := int32(0), Span{}
	for j := i; j < len(f.words) && j < i+maxNameWords; j++ {
		w := &f.words[j]
		if j > i && w.start-f.words[j-1].end > maxSeparator {
			break
		}
		next, ok := f.trie[mix(at, w.hash)]
		if !ok {
			break
		}
		at = next
		n, s := f.nodes[at], Span{f.words[i].start, w.end, Person, -1}
		if n.name != nobody {
			s.Person = n.name
			best = s
		}
		if n.exact {
			if id, ok := f.byID[plainID(text[s.Start:s.End])]; ok && !(id.common && !addressed(text, s)) {
				best = Span{s.Start, s.End, id.label, id.person}
			}
		}
	}
	if best.End > 0 {
		f.cuts = append(f.cuts, best)
	}
}

// addressed reports whether the text uses the word as a user: after '@' or
// '~', or in a URL or path that names a user.
func addressed(text []byte, s Span) bool {
	if s.Start == 0 {
		return false
	}
	if c := text[s.Start-1]; c == '@' || c == '~' {
		return true
	}
	before := text[max(0, s.Start-24):s.Start]
	for _, p := range []string{"name=", "user=", "username=", "/users/", "/Users/", "/home/", "accountid:"} {
		if bytes.HasSuffix(before, []byte(p)) {
			return true
		}
	}
	return false
}

func isLocal(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c >= utf8.RuneSelf ||
		c == '.' || c == '_' || c == '%' || c == '+' || c == '-' || c == '\''
}

func isDomain(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c >= utf8.RuneSelf || c == '.' || c == '-'
}

// atSigns are the spellings of '@' in texts, URLs and HTML.
var atSigns = [...]string{"@", "%40", "&#64;", "&#x40;", "&commat;"}

// atSign returns the length of the at sign that t begins with, or 0.
func atSign(t []byte) int {
	for _, a := range atSigns {
		if len(t) >= len(a) && string(t[:len(a)]) == a {
			return len(a)
		}
	}
	return 0
}

// emailAt finds the e-mail address around the at sign [i, to): letters, digits
// and . _ % + - ' before it, but not before offset floor; and two or more domain
// labels after it, of which the last begins with two or more letters.
func (f *finder) emailAt(text []byte, floor, i, to int) {
	from := i
	for from > floor && isLocal(text[from-1]) {
		r, n := utf8.DecodeLastRune(text[:from])
		if r >= utf8.RuneSelf && !isWord(r) {
			break
		}
		if from-3 >= floor {
			// "?to=%3Cjane@example.org", but "jane%2Bjira@example.org".
			if c, ok := percent(text[from-3:]); ok && !isLocal(c) {
				break
			}
		}
		from -= n
	}
	domain := to
	for to < len(text) && isDomain(text[to]) && !bytes.HasPrefix(text[to:], []byte("..")) {
		if text[to] >= utf8.RuneSelf && utf8.RuneStart(text[to]) && !wordOrASCII(text[to:]) {
			break
		}
		to++
	}
	// What follows a domain without a space is not of its last label:
	// "jane@example.org-2", "jane@example.org.2".
	for {
		dot := bytes.LastIndexByte(text[domain:to], '.')
		if dot <= 0 {
			return
		}
		last := text[domain+dot+1 : to]
		n := 0
		for n < len(last) && (last[n] >= utf8.RuneSelf || 'a' <= last[n]|0x20 && last[n]|0x20 <= 'z') {
			n++
		}
		if bytes.HasPrefix(last, []byte("xn--")) {
			n = len(bytes.TrimRight(last, "-"))
		}
		to = domain + dot
		if n >= 2 {
			to += 1 + n
			break
		}
	}
	for from < i && (text[from] == '.' || text[from] == '\'' || text[from] == '-' || text[from] == '+' ||
		text[from] == '_' && to < len(text) && text[to] == '_') {
		from++ // quotes and markup
	}
	if from == i {
		return
	}
	f.cuts = append(f.cuts, Span{from, to, Email, f.personOf(text[from:to])})
}

// wordOrASCII reports whether s begins with an ASCII byte or a word rune;
// quotes, dashes and spaces beyond ASCII end an address.
func wordOrASCII(s []byte) bool {
	r, _ := utf8.DecodeRune(s)
	return r < utf8.RuneSelf || isWord(r)
}

// handleAt finds "@login" where the login is declared.
func (f *finder) handleAt(text []byte, i int) {
	const maxLogin = 64
	to := i + 1
	for to < len(text) && to-i <= maxLogin && isLocal(text[to]) {
		to++
	}
	for ; to > i+1; to-- {
		if p := f.personOf(text[i+1 : to]); p >= 0 {
			f.cuts = append(f.cuts, Span{i + 1, to, Username, p})
			return
		}
		// "@jroe," and "@jroe's" end in what a login could hold.
		if c := text[to-1]; c != '.' && c != '-' && c != '\'' && !(c|0x20 == 's' && to-2 > i && text[to-2] == '\'') {
			return
		}
	}
}

// accountPrefix stands before the account id in a mention.
const accountPrefix = "accountid:"

// mentionAt finds the user of the wiki mentions "[~user]",
// "[~accountid:id]" and "[text|~user]" whose text begins at i.
func (f *finder) mentionAt(text []byte, i int) {
	const maxMention = 256
	ends := "]\n["
	if text[i-2] == '|' {
		ends = "]\n[|" // "|~5|~6|" is a table
	}
	n := bytes.IndexAny(text[i:min(len(text), i+maxMention)], ends)
	if n <= 0 || text[i+n] != ']' {
		return
	}
	s := Span{i, i + n, Username, -1}
	if p := len(accountPrefix); n > p && bytes.EqualFold(text[i:i+p], []byte(accountPrefix)) {
		s.Start, s.Label = i+p, AccountID
	}
	s.Person = f.personOf(text[s.Start:s.End])
	f.cuts = append(f.cuts, s)
}

// accountAt finds an account id that begins at word i, in the four spellings
// that Atlassian's ids have: 24 hexadecimal digits; a number or short prefix,
// a colon and a UUID; "qm:", a UUID, a colon and a UUID; and either with the
// colons percent-encoded.
func (f *finder) accountAt(text []byte, i int) {
	w := &f.words[i]
	n := w.end - w.start
	end := 0
	switch {
	case n == 24 && hexDigits(text[w.start:]) == 24:
		end = w.end
	case n <= 8:
		end = idColon(text, w.end)
		if end == 0 {
			return
		}
		if end = uuidAt(text, end); end == 0 {
			return
		}
		if next := idColon(text, end); next > 0 {
			if to := uuidAt(text, next); to > 0 {
				end = to
			}
		}
	default:
		return
	}
	f.cuts = append(f.cuts, Span{w.start, end, AccountID, f.personOf(text[w.start:end])})
}

// plainID returns an identity in the one spelling that identities are compared
// in: lower case, colons and at signs not encoded.
func plainID(id []byte) string { return encoded.Replace(strings.ToLower(string(id))) }

var encoded = strings.NewReplacer("%3a", ":", "%40", "@", "&#64;", "@", "&#x40;", "@", "&commat;", "@")

// idColon returns the offset after a colon at i, plain or percent-encoded, or 0.
func idColon(text []byte, i int) int {
	switch {
	case i < len(text) && text[i] == ':':
		return i + 1
	case i+2 < len(text) && text[i] == '%' && text[i+1] == '3' && text[i+2]|0x20 == 'a':
		return i + 3
	}
	return 0
}

// uuidAt returns the offset after a UUID at i, or 0.
func uuidAt(text []byte, i int) int {
	for g, n := range [...]int{8, 4, 4, 4, 12} {
		if g > 0 {
			if i >= len(text) || text[i] != '-' {
				return 0
			}
			i++
		}
		if hexDigits(text[i:]) != n {
			return 0
		}
		i += n
	}
	return i
}

// hexDigits counts the hexadecimal digits that text begins with, up to 25.
func hexDigits(text []byte) int {
	n := 0
	for n < len(text) && n < 25 && (text[n]-'0' <= 9 || 'a' <= text[n]|0x20 && text[n]|0x20 <= 'f') {
		n++
	}
	return n
}
