package session

// Bounds that the model world keeps, too.
const (
	ReadBound  = readBound
	PostBound  = postBound
	StartBound = startBound
	EndBound   = endBound
)
