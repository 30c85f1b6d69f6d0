package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Image is an image that sandboxes can be made from.
type Image struct {
	ID         string    `json:"id"`
	References []string  `json:"references" doc:"what it is known by"`
	Digest     string    `json:"digest"`
	Platform   string    `json:"platform,omitempty"`
	Bytes      int64     `json:"bytes" doc:"unpacked"`
	Files      int       `json:"files"`
	Layers     int       `json:"layers" doc:"that are kept packed, too"`
	MadeAt     time.Time `json:"made_at"`
	UsedAt     time.Time `json:"used_at"`
	Sandboxes  int       `json:"sandboxes" doc:"that use it now, running or parked"`
	Lacks      string    `json:"lacks,omitempty" doc:"what sandboxes from it lack"`
}

// Images is the list of all of them, the one that was used last first.
type Images struct {
	Data []Image `json:"data"`
}

// ImageReference names an image.
type ImageReference struct {
	Reference string `json:"reference" minLength:"1" maxLength:"2048" doc:"such as docker.io/library/debian:12"`
}

// PullLine is one line of the answer to a pull: its progress, or how it ended.
type PullLine struct {
	Progress *sandbox.ImageProgress `json:"progress,omitempty"`
	Image    *Image                 `json:"image,omitempty"`
	Error    *Problem               `json:"error,omitempty"`
}

// CollectImages says which images to remove.
type CollectImages struct {
	UnusedFor int64 `json:"unused_for_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"default: sandbox.images.keep"`
	All       bool  `json:"all,omitempty" doc:"whatever no sandbox uses"`
}

// Collected is what was removed.
type Collected struct {
	Images int   `json:"images"`
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
}

// ImagePath names an image in a path.
type ImagePath struct {
	ID string `path:"id" maxLength:"64" doc:"image id"`
}

func (s *server) images(api huma.API) {
	huma.Register(api, operation("list-images", http.MethodGet, "/api/v1/images", "Images, the one that was used last first"),
		func(ctx context.Context, _ *struct{}) (*answer[Images], error) {
			power, err := s.imagePower()
			if err != nil {
				return nil, problem(err)
			}
			all, err := power.Images(ctx)
			if err != nil {
				return nil, s.failed(err)
			}
			out := Images{Data: make([]Image, 0, len(all))}
			for i := range all {
				out.Data = append(out.Data, showImage(&all[i]))
			}
			return &answer[Images]{out}, nil
		})

	pull := operation("pull-image", http.MethodPost, "/api/v1/images", "Pull an image")
	pull.Description = "Looks the reference up anew and makes the image ready. The answer is a line of JSON (PullLine) for each " +
		"progress, and a last one with the image or the error. The pull goes on when nobody reads."
	huma.Register(api, pull, func(_ context.Context, in *struct{ Body ImageReference }) (*huma.StreamResponse, error) {
		power, err := s.imagePower()
		if err != nil {
			return nil, problem(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) { s.pullImage(c, power, in.Body.Reference) }}, nil
	})

	remove := operation("remove-image", http.MethodDelete, "/api/v1/images/{id}", "Remove an image that no sandbox uses")
	remove.DefaultStatus = http.StatusNoContent
	huma.Register(api, remove, func(ctx context.Context, in *ImagePath) (*struct{}, error) {
		power, err := s.imagePower()
		if err == nil {
			err = power.RemoveImage(ctx, in.ID)
		}
		if err != nil {
			return nil, s.failed(err)
		}
		return nil, nil
	})

	huma.Register(api, operation("collect-images", http.MethodPost, "/api/v1/images/collect", "Remove images that nobody uses"),
		func(ctx context.Context, in *struct{ Body CollectImages }) (*answer[Collected], error) {
			power, err := s.imagePower()
			if err != nil {
				return nil, problem(err)
			}
			unused := time.Duration(in.Body.UnusedFor) * time.Second
			if in.Body.All {
				unused = -1
			}
			got, err := power.CollectImages(ctx, unused)
			if err != nil {
				return nil, s.failed(err)
			}
			return &answer[Collected]{Collected(got)}, nil
		})
}

func (s *server) imagePower() (sandbox.Images, error) {
	if s.Images == nil {
		return nil, fault.New(fault.Unsupported, "this server's sandboxes are not made from images").
			WithNext("use a backend that has them, such as linux")
	}
	return s.Images, nil
}

// pullImage writes the progress of a pull, a line each, until it ended or the
// server leaves.
func (s *server) pullImage(c huma.Context, power sandbox.Images, reference string) {
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the pull
		select {
		case <-s.closing:
			cancel()
		case <-stop:
		}
	}()
	c.SetHeader("Content-Type", "application/x-ndjson")
	c.SetHeader("X-Accel-Buffering", "no")
	w := c.BodyWriter()
	flush := func() {}
	if rw, ok := w.(http.ResponseWriter); ok {
		rc := http.NewResponseController(rw)
		_ = rc.SetWriteDeadline(time.Time{}) // the pull has a bound of its own
		flush = func() { _ = rc.Flush() }
	}
	lines := json.NewEncoder(w)
	image, err := power.PullImage(ctx, reference, func(p sandbox.ImageProgress) {
		if lines.Encode(PullLine{Progress: &p}) != nil {
			cancel() // nobody reads
		}
		flush()
	})
	last := PullLine{}
	if err != nil {
		s.Log.Warn("image not pulled", "image", reference, "err", err)
		last.Error = problem(err)
	} else {
		shown := showImage(&image)
		last.Image = &shown
	}
	_ = lines.Encode(last) // the client may be gone
	flush()
}

func showImage(i *sandbox.Image) Image {
	refs := i.References
	if refs == nil {
		refs = []string{}
	}
	return Image{
		ID: i.ID, References: refs, Digest: i.Digest, Platform: i.Platform, Bytes: i.Bytes, Files: i.Files, Layers: i.Layers,
		MadeAt: i.Made, UsedAt: i.Used, Sandboxes: i.Sandboxes, Lacks: i.Lacks,
	}
}
