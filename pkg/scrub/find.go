package scrub

import (
	"bytes"
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
	trie  map[uint64]int32 // (node, hash of a folded word) -> node+1; root is 0
	ends  [][]entry        // by node: identities that end there
	cjk   []entry          // identities in scripts without word borders
	byID  map[string]int32 // folded login, e-mail address or account id -> person
	words []word           // of the text at hand
	cuts  []Span
}

// entry is one identity of one person.
type entry struct {
	s      []byte // lower case; matched to the letter when exact
	person int32
	login  bool
	exact  bool // an identity that its punctuation belongs to: login, address
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
	maxNameWords = 12 // words of one identity that are looked at
	maxSeparator = 4  // bytes between two words of one name: "Roe, Jane", "jane.roe"
)

// setPeople takes the people of the next texts. Each holds the identities of
// one person separated by NUL, a login after a '~'.
func (f *finder) setPeople(people [][]byte) {
	if f.trie == nil {
		f.trie, f.byID = map[uint64]int32{}, map[string]int32{}
	}
	clear(f.trie)
	clear(f.byID)
	f.ends = append(f.ends[:0], nil)
	f.cjk = f.cjk[:0]
	for i, p := range people {
		for len(p) > 0 {
			var id []byte
			id, p, _ = bytes.Cut(p, []byte{0})
			f.addIdentity(id, int32(i))
		}
	}
}

func (f *finder) addIdentity(id []byte, person int32) {
	e := entry{person: person}
	if len(id) > 1 && id[0] == '~' {
		id, e.login = id[1:], true
	}
	e.s = bytes.ToLower(bytes.TrimSpace(id))
	e.exact = e.login || bytes.IndexByte(e.s, '@') > 0 || bytes.IndexByte(e.s, ':') > 0
	e.common = e.login && englishWords()[string(e.s)]
	if e.exact {
		if _, ok := f.byID[string(e.s)]; !ok {
			f.byID[string(e.s)] = person
		}
	}
	f.words = appendWords(f.words[:0], e.s)
	if len(f.words) == 0 || len(f.words) > maxNameWords {
		if len(f.words) == 0 {
			return
		}
		f.words = f.words[:maxNameWords] // a very long name is known by its first words
		e.exact = false
	}
	if e.exact {
		// The match is compared to the letter from its first word to its last.
		e.s = e.s[f.words[0].start:f.words[len(f.words)-1].end]
	} else if isCJK(e.s) {
		f.cjk = append(f.cjk, e)
	}
	at := int32(0)
	for _, w := range f.words {
		k := mix(at, w.hash)
		next, ok := f.trie[k]
		if !ok {
			next = int32(len(f.ends))
			f.ends = append(f.ends, nil)
			f.trie[k] = next
		}
		at = next
	}
	f.ends[at] = append(f.ends[at], e)
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

func isCJK(s []byte) bool {
	r, _ := utf8.DecodeRune(s)
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul)
}

// appendWords appends the words of text with a hash of each, lower-cased.
func appendWords(dst []word, text []byte) []word {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a, 64 bit
	start, h := -1, uint64(offset)
	for i := 0; i < len(text); {
		c := text[i]
		if c < utf8.RuneSelf {
			if 'A' <= c && c <= 'Z' {
				c |= 0x20
			}
			if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
				if start < 0 {
					start, h = i, offset
				}
				h = (h ^ uint64(c)) * prime
				i++
				continue
			}
			if start >= 0 {
				dst = append(dst, word{start, i, h})
				start = -1
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		switch {
		case isWord(r):
			if start < 0 {
				start, h = i, offset
			}
			for r = unicode.ToLower(r); r > 0; r >>= 8 {
				h = (h ^ uint64(r&0xff)) * prime
			}
		case start >= 0:
			dst = append(dst, word{start, i, h})
			start = -1
		}
		i += n
	}
	if start >= 0 {
		dst = append(dst, word{start, len(text), h})
	}
	return dst
}

// appendSpans appends the spans of text in order, without overlaps.
func (f *finder) appendSpans(dst []Span, text []byte) []Span {
	f.words = appendWords(f.words[:0], text)
	f.cuts = f.cuts[:0]
	for i := range f.words {
		f.nameAt(text, i)
		f.accountAt(text, i)
	}
	for _, e := range f.cjk {
		for at := 0; ; {
			i := bytes.Index(text[at:], e.s)
			if i < 0 {
				break
			}
			at += i + len(e.s)
			f.cuts = append(f.cuts, Span{at - len(e.s), at, Person, e.person})
		}
	}
	for at := 0; ; at++ {
		i := bytes.IndexByte(text[at:], '@')
		if i < 0 {
			break
		}
		at += i
		f.emailAt(text, at)
		f.handleAt(text, at)
	}
	for at := 0; ; {
		i := bytes.Index(text[at:], []byte("[~"))
		if i < 0 {
			break
		}
		at += i + 2
		f.mentionAt(text, at)
	}
	return f.resolve(dst)
}

// resolve appends the cuts in order. Of two that overlap the longer gives the
// label and the person, and their union is removed, so that no part of either
// stays.
func (f *finder) resolve(dst []Span) []Span {
	slices.SortFunc(f.cuts, func(a, b Span) int {
		if a.Start != b.Start {
			return a.Start - b.Start
		}
		return b.End - a.End
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
	at, best := int32(0), Span{End: -1}
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
		for _, e := range f.ends[at] {
			s := Span{f.words[i].start, w.end, Person, e.person}
			if e.login {
				s.Label = Username
			}
			if e.exact && !equalFold(text[s.Start:s.End], e.s) || e.common && !addressed(text, s) {
				continue
			}
			if bytes.IndexByte(e.s, '@') > 0 {
				s.Label = Email
			} else if e.exact && bytes.IndexByte(e.s, ':') > 0 {
				s.Label = AccountID
			}
			if s.End > best.End {
				best = s
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

func equalFold(text, lower []byte) bool {
	if len(text) == len(lower) {
		ascii := true
		for i, c := range text {
			if c >= utf8.RuneSelf {
				ascii = false
				break
			}
			if 'A' <= c && c <= 'Z' {
				c |= 0x20
			}
			if c != lower[i] {
				return false
			}
		}
		if ascii {
			return true
		}
	}
	return bytes.EqualFold(text, lower)
}

func isLocal(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c >= utf8.RuneSelf ||
		c == '.' || c == '_' || c == '%' || c == '+' || c == '-' || c == '\''
}

func isDomain(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c >= utf8.RuneSelf || c == '.' || c == '-'
}

// Bounds of RFC 5321 §4.5.3.1, so that a long run costs nothing extra.
const (
	maxLocal  = 64
	maxDomain = 255
)

// emailAt finds the e-mail address around the '@' at i: letters, digits and
// . _ % + - ' before it, two or more domain labels after it, of which the last
// has two or more letters.
func (f *finder) emailAt(text []byte, i int) {
	from := i
	for from > 0 && i-from < maxLocal && isLocal(text[from-1]) {
		r, n := utf8.DecodeLastRune(text[:from])
		if r >= utf8.RuneSelf && !isWord(r) {
			break
		}
		from -= n
	}
	for from < i && (text[from] == '.' || text[from] == '\'' || text[from] == '-') {
		from++
	}
	to := i + 1
	for to < len(text) && to-i <= maxDomain && isDomain(text[to]) {
		if text[to] >= utf8.RuneSelf && utf8.RuneStart(text[to]) && !wordOrASCII(text[to:]) {
			break
		}
		to++
	}
	for to > i+1 && (text[to-1] == '.' || text[to-1] == '-') {
		to--
	}
	domain := text[i+1 : to]
	dot := bytes.LastIndexByte(domain, '.')
	if from == i || dot <= 0 || bytes.Contains(domain, []byte("..")) {
		return
	}
	letters := 0
	for _, c := range domain[dot+1:] {
		if c < utf8.RuneSelf && '0' <= c && c <= '9' && !bytes.HasPrefix(domain[dot+1:], []byte("xn--")) {
			return
		}
		letters++
	}
	if letters < 2 {
		return
	}
	s := Span{from, to, Email, -1}
	if p, ok := f.byID[string(bytes.ToLower(text[from:to]))]; ok {
		s.Person = p
	}
	f.cuts = append(f.cuts, s)
}

// wordOrASCII reports whether s begins with an ASCII byte or a word rune;
// quotes, dashes and spaces beyond ASCII end an address.
func wordOrASCII(s []byte) bool {
	r, _ := utf8.DecodeRune(s)
	return r < utf8.RuneSelf || isWord(r)
}

// handleAt finds "@login" where the login is declared.
func (f *finder) handleAt(text []byte, i int) {
	to := i + 1
	for to < len(text) && to-i <= maxLocal && isLocal(text[to]) {
		to++
	}
	for ; to > i+1; to-- {
		if p, ok := f.byID[string(bytes.ToLower(text[i+1:to]))]; ok {
			f.cuts = append(f.cuts, Span{i + 1, to, Username, p})
			return
		}
		// "@jroe," and "@jroe's" end in what a login could hold.
		if c := text[to-1]; c != '.' && c != '-' && c != '\'' && !(c|0x20 == 's' && to-2 > i && text[to-2] == '\'') {
			return
		}
	}
}

// mentionAt finds the user of the wiki mention "[~user]" or
// "[~accountid:id]" whose text begins at i.
func (f *finder) mentionAt(text []byte, i int) {
	const maxMention = 256
	n := bytes.IndexAny(text[i:min(len(text), i+maxMention)], "]\n")
	if n <= 0 || text[i+n] != ']' {
		return
	}
	s := Span{i, i + n, Username, -1}
	if id, ok := bytes.CutPrefix(text[i:s.End], []byte("accountid:")); ok && len(id) > 0 {
		s.Start, s.Label = s.End-len(id), AccountID
	}
	if p, ok := f.byID[string(bytes.ToLower(text[s.Start:s.End]))]; ok {
		s.Person = p
	}
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
	s := Span{w.start, end, AccountID, -1}
	if p, ok := f.byID[string(plainID(text[s.Start:s.End]))]; ok {
		s.Person = p
	}
	f.cuts = append(f.cuts, s)
}

// plainID returns an identity in the one spelling that identities are compared
// in: lower case, colons not encoded.
func plainID(id []byte) []byte {
	return bytes.ReplaceAll(bytes.ToLower(id), []byte("%3a"), []byte(":"))
}

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
