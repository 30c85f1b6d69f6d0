package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/fault"
)

type imagesCmd struct {
	List imagesListCmd `cmd:"" help:"List the images that are here."`
	Pull imagesPullCmd `cmd:"" help:"Look an image up anew and make it ready."`
	Rm   imagesRmCmd   `cmd:"" help:"Remove an image that no sandbox uses."`
	GC   imagesGCCmd   `cmd:"" name:"gc" help:"Remove images that nobody has used for long."`
}

type imagesListCmd struct{}

// Run lists images.
func (imagesListCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	var all api.Images
	if err := c.call(ctx, http.MethodGet, "/api/v1/images", nil, &all); err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(all.Data)
	}
	var rows [][]cell
	for _, i := range all.Data {
		name := plain(strings.Join(i.References, ", "), 80)
		if name == "" {
			name = "-"
		}
		rows = append(rows, []cell{
			{text: i.ID, st: bold},
			{text: name},
			{text: plain(i.Platform, 20)},
			{text: size(i.Bytes)},
			{text: itoa(int64(i.Sandboxes))},
			{text: d.out.ago(i.UsedAt)},
			{text: plain(i.Lacks, 100), st: yellow},
		})
	}
	d.out.table([]string{"id", "references", "platform", "size", "sandboxes", "used", "lacks"}, rows)
	return nil
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", (n+1023)>>10)
}

type imagesPullCmd struct {
	Reference string `arg:"" help:"Such as docker.io/library/debian:12, oci:/path, tar:/path.tar or dir:/path."`
}

// Run pulls and shows how far it is.
func (cmd *imagesPullCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	body, err := json.Marshal(api.ImageReference{Reference: cmd.Reference})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	res, err := c.send(ctx, http.MethodPost, "/api/v1/images", bytes.NewReader(body), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	shown := time.Time{}
	for lines := json.NewDecoder(res.Body); ; {
		var line api.PullLine
		err := lines.Decode(&line)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fault.Wrap(err, fault.Unavailable, "the server's answer ended early").WithNext("the pull goes on; ask again")
		case line.Error != nil:
			return &fault.Error{Code: line.Error.Code, Message: line.Error.Detail, Field: line.Error.Field, Next: line.Error.Next}
		case line.Image != nil:
			return cmd.show(d, *line.Image)
		case line.Progress != nil && d.out.now().Sub(shown) >= time.Second:
			shown = d.out.now()
			d.out.progress("%s: %s", plain(line.Progress.Reference, 120), line.Progress)
		}
	}
}

func (cmd *imagesPullCmd) show(d *deps, i api.Image) error {
	if d.out.json {
		return d.out.value(i)
	}
	d.out.line("%s  %s  %s", d.out.paint(bold, i.ID), plain(i.Digest, 80), size(i.Bytes))
	if i.Lacks != "" {
		d.out.line("%s", d.out.paint(yellow, "it lacks: "+plain(i.Lacks, 400)))
	}
	return nil
}

type imagesRmCmd struct {
	Image string `arg:"" help:"Id or reference of the image."`
}

// Run removes an image.
func (cmd *imagesRmCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	var all api.Images
	if err := c.call(ctx, http.MethodGet, "/api/v1/images", nil, &all); err != nil {
		return err
	}
	for _, i := range all.Data {
		if i.ID != cmd.Image && !slices.Contains(i.References, cmd.Image) {
			continue
		}
		if err := c.call(ctx, http.MethodDelete, "/api/v1/images/"+url.PathEscape(i.ID), nil, nil); err != nil {
			return err
		}
		if d.out.json {
			return d.out.value(map[string]string{"removed": i.ID})
		}
		d.out.line("removed %s", i.ID)
		return nil
	}
	return fault.New(fault.NotFound, "there is no image %s here", plain(cmd.Image, 120)).WithNext("see: berth images list")
}

type imagesGCCmd struct {
	Unused time.Duration `help:"Remove what nobody has used for this long (default: sandbox.images.keep)." placeholder:"TIME"`
	All    bool          `help:"Remove whatever no sandbox uses."`
}

// Run removes images that nobody uses.
func (cmd *imagesGCCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	var got api.Collected
	in := api.CollectImages{UnusedFor: int64(cmd.Unused.Seconds()), All: cmd.All}
	if err := c.call(ctx, http.MethodPost, "/api/v1/images/collect", in, &got); err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(got)
	}
	d.out.line("removed %d images and %d layers, %s", got.Images, got.Layers, size(got.Bytes))
	return nil
}
